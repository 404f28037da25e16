// Package raftnode is what every node of etcd's Raft library needs and the library leaves to its users: a log on disk,
// connections between nodes, and what is said on the standard error.
package raftnode

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Nodes talk over one TCP connection in each direction: frames of a length u32 and a protobuf message. What
// cannot be sent is dropped: Raft sends it again.

const (
	linkQueue    = 4096
	linkBuffer   = 256 << 10
	redialAfter  = 20 * time.Millisecond
	dialTimeout  = time.Second
	sendTimeout  = 10 * time.Second
	frameMax     = 1 << 30
	snapshotKind = pb.MessageType_MsgSnap
)

// Fate tells the node what became of a message to a peer.
type Fate struct {
	Peer     uint64
	Snapshot bool
	Sent     bool
}

// Transport has a link to each peer.
type Transport struct {
	links map[uint64]*link
	Fates chan Fate
}

type link struct {
	peer  uint64
	addr  string
	queue chan *pb.Message
	fates chan<- Fate
}

// ParsePeers reads NUMBER=ADDR, with a comma between two.
func ParsePeers(list string) (map[uint64]string, error) {
	peers := make(map[uint64]string)
	for part := range strings.SplitSeq(list, ",") {
		number, addr, _ := strings.Cut(part, "=")
		id, err := strconv.ParseUint(number, 10, 64)
		if err != nil || id == 0 || addr == "" {
			return nil, fmt.Errorf("--peers has %q, which is not NUMBER=ADDR", part)
		}
		peers[id] = addr
	}
	return peers, nil
}

// NewTransport sends to all peers but self until the context ends.
func NewTransport(ctx context.Context, self uint64, peers map[uint64]string) *Transport {
	t := &Transport{links: make(map[uint64]*link), Fates: make(chan Fate, 64)}
	for id, addr := range peers {
		if id == self {
			continue
		}
		l := &link{peer: id, addr: addr, queue: make(chan *pb.Message, linkQueue), fates: t.Fates}
		t.links[id] = l
		go l.run(ctx)
	}
	return t
}

// Send queues messages, and drops those for which there is no room.
func (t *Transport) Send(messages []*pb.Message) {
	for _, message := range messages {
		l := t.links[message.GetTo()]
		if l == nil {
			continue
		}
		select {
		case l.queue <- message:
		default:
			l.tell(message, false)
		}
	}
}

// tell reports a snapshot's fate always, and of other messages only that the peer can't be reached. Nobody
// waits for room in the channel but for the former: Raft sends no more to that peer until it is told.
func (l *link) tell(message *pb.Message, sent bool) {
	report := Fate{Peer: l.peer, Snapshot: message.GetType() == snapshotKind, Sent: sent}
	if report.Snapshot {
		go func() { l.fates <- report }()
		return
	}
	if !sent {
		select {
		case l.fates <- report:
		default:
		}
	}
}

func (l *link) run(ctx context.Context) {
	for ctx.Err() == nil {
		dialer := net.Dialer{Timeout: dialTimeout}
		conn, err := dialer.DialContext(ctx, "tcp", l.addr)
		if err == nil {
			l.serve(ctx, conn)
		}
		l.dropQueue()
		select {
		case <-ctx.Done():
		case <-time.After(redialAfter):
		}
	}
}

func (l *link) dropQueue() {
	for {
		select {
		case message := <-l.queue:
			l.tell(message, false)
		default:
			return
		}
	}
}

// serve sends until the connection breaks.
func (l *link) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	// The peer never speaks on this connection: what can be read is its end.
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(io.Discard, conn)
	}()
	writer := bufio.NewWriterSize(conn, linkBuffer)
	var frame []byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-gone:
			return
		case message := <-l.queue:
			conn.SetWriteDeadline(time.Now().Add(sendTimeout))
			var err error
			if frame, err = l.write(writer, frame, message); err == nil && len(l.queue) == 0 {
				err = writer.Flush()
			}
			l.tell(message, err == nil)
			if err != nil {
				return
			}
		}
	}
}

func (l *link) write(writer *bufio.Writer, frame []byte, message *pb.Message) ([]byte, error) {
	frame, err := (proto.MarshalOptions{}).MarshalAppend(append(frame[:0], 0, 0, 0, 0), message)
	if err != nil {
		return frame, err
	}
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-4))
	_, err = writer.Write(frame)
	return frame, err
}

// Receive hands on what peers send until the listener is closed.
func Receive(ctx context.Context, listener net.Listener, inbound chan<- *pb.Message) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go receiveFrom(ctx, conn, inbound)
	}
}

func receiveFrom(ctx context.Context, conn net.Conn, inbound chan<- *pb.Message) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reader := bufio.NewReaderSize(conn, linkBuffer)
	for {
		message, err := readFrame(reader)
		if err != nil {
			return
		}
		select {
		case inbound <- message:
		case <-ctx.Done():
			return
		}
	}
}

func readFrame(reader io.Reader) (*pb.Message, error) {
	var header [4]byte
	if _, err := io.ReadFull(reader, header[:]); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint32(header[:])
	if length > frameMax {
		return nil, fmt.Errorf("a peer sent a frame of %d bytes", length)
	}
	frame := make([]byte, length)
	if _, err := io.ReadFull(reader, frame); err != nil {
		return nil, err
	}
	message := &pb.Message{}
	return message, proto.Unmarshal(frame, message)
}
