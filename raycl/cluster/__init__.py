"""What a cluster's file offers, whether a recipe can be placed there, and what that costs."""
