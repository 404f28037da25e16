module checksync/apps/mapreduce

go 1.26
