"""Configurations, one file per image data set; `common` is what they share."""
