"""One PyTorch skeleton, any token mixer, every vision task."""
