"""Drawing on images, and albums, animations and videos of them."""
