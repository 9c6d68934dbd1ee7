"""Measurements shown to people: plots, tables, reports."""
