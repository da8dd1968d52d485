module isthmus

go 1.24
