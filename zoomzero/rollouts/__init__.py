"""Sampling responses: many for each prompt, over one prefill."""
