"""Measurements, run by hand: each compares two things in one run and prints a ratio, or fills a table of a page."""
