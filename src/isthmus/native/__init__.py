"""The floor that opens shared libraries. Status codes end here; above are only exceptions."""
