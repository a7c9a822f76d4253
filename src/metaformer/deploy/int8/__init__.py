"""Classifiers in int8 for CPUs, by NNCF and OpenVINO."""
