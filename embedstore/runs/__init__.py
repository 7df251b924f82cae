"""Run folders: written once, sealed by their manifest, then only read."""
