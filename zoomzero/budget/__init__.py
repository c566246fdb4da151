"""Which frames a pass sees, and at which size, under a budget of visual tokens."""

from zoomzero.budget.plan import FramePlan, plan_frames

__all__ = ["FramePlan", "plan_frames"]
