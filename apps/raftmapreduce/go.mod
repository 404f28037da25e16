module checksync/apps/raftmapreduce

go 1.26

require (
	checksync/apps/raftnode v0.0.0
	go.etcd.io/raft/v3 v3.7.0
)

require google.golang.org/protobuf v1.36.11 // indirect

replace checksync/apps/raftnode => ../raftnode
