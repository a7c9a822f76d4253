"""Demo data made from real digits and photographs."""
