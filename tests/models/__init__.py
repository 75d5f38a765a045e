"""Model folders of our own making: tiny tokenizers trained on the spot, templates in our own words."""
