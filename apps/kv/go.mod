module checksync/apps/kv

go 1.26
