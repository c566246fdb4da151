"""zoomzero: video-language models that find the evidence before they answer."""
