"""The assets, in the order of the flow: `sources` (what there is to mirror), then `images` (mirroring it)."""
