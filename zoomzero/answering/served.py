"""An engine whose model runs on a server that speaks OpenAI's chat completions."""

from __future__ import annotations

from zoomzero.answering.backends.openai import OpenAIBackend, Server
from zoomzero.answering.engine import Engine
from zoomzero.inputs import FramePlanner


class ServedModel(Engine):
    """An engine whose model runs on a server."""

    can_keep_tokens = False

    def __init__(self, server: Server, planner: FramePlanner) -> None:
        super().__init__(planner)
        self.server = server
        self.name = f"{server.model} at {server.base_url}"

    def backend(self, num_decoders: int) -> OpenAIBackend:
        """As `Engine`."""
        return OpenAIBackend(self.server, self.planner, num_decoders)
