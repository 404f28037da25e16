module checksync/apps/structkv

go 1.26

require checksync v0.0.0

replace checksync => ../../sdk/go
