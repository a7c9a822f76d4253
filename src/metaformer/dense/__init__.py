"""Networks that say something about every pixel, on any backbone."""
