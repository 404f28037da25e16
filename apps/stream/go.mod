module checksync/apps/stream

go 1.26
