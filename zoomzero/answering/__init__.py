"""Answering questions about videos: the engine, what it takes and gives, and the strategies that it runs."""
