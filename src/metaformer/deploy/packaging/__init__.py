"""Networks compiled ahead of time into one file, by AOTInductor."""
