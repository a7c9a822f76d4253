"""Networks on a backbone."""
