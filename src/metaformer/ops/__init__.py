"""The few operations worth owning."""
