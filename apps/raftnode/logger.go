package raftnode

import (
	"log"
	"os"

	"go.etcd.io/raft/v3"
)

// QuietLogger says only what goes wrong, and which program says it.
func QuietLogger(program string) raft.Logger {
	return &warnings{raft.DefaultLogger{Logger: log.New(os.Stderr, program+": raft: ", 0)}}
}

type warnings struct{ raft.DefaultLogger }

func (*warnings) Debug(...any)            {}
func (*warnings) Debugf(string, ...any)   {}
func (*warnings) Info(...any)             {}
func (*warnings) Infof(string, ...any)    {}
func (*warnings) Warning(...any)          {}
func (*warnings) Warningf(string, ...any) {}
