"""Operating points, chosen and compared from traces; no model is ever touched here."""
