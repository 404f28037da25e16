module checksync

go 1.26
