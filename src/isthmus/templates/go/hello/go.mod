module agent/NAME

go 1.24

require isthmus v0.0.0

replace isthmus => ./isthmus
