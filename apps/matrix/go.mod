module checksync/apps/matrix

go 1.26
