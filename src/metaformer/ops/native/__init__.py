"""Kernels in C++ for what lies between a network's products on a CPU; compiled on the machine, once."""
