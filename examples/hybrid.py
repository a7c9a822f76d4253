"""A hybrid of one's own from published parts, with honest counts: `python examples/hybrid.py`."""

import metaformer
from metaformer.bench.counts import count

donor = metaformer.create_model("poolformer_s12")
hybrid = metaformer.create_model("poolformer_s12", mixers=("pooling", "sepconv", "attention", "attention"))
report = metaformer.load_weights(hybrid, donor.state_dict(), strict=False)
print(f"{report.fraction:.0%} of the hybrid's parameters came from the donor")
for name, model in (("poolformer_s12", donor), ("hybrid", hybrid)):
    counts = count(model)
    print(f"{name:15} {counts.params / 1e6:6.1f} M parameters {counts.macs / 1e9:6.2f} GMACs")
