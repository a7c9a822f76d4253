"""Published weights: where they are, how they are named, and how to read and write them safely."""
