"""For every test."""

from metaformer.ops.process import keep_freed_memory, sleep_rather_than_spin

keep_freed_memory()  # as the command line does: training tests run far faster where memory is scarce
sleep_rather_than_spin()
