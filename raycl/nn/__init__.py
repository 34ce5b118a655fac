"""Parts that methods are built from: losses, heads, normalisation, collectives, backbones."""
