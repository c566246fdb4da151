"""Looks at videos: which frames of which video go before the model with which question, read once and cached."""
