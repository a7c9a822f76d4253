"""For every test."""

from metaformer.ops.allocator import keep_freed_memory

keep_freed_memory()  # as the command line does: training tests run far faster where memory is scarce
