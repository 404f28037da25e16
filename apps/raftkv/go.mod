module checksync/apps/raftkv

go 1.26

require (
	checksync/apps/raftnode v0.0.0
	go.etcd.io/raft/v3 v3.7.0
	google.golang.org/protobuf v1.36.11
)

replace checksync/apps/raftnode => ../raftnode
