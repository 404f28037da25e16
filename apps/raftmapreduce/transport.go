package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Nodes talk over one TCP connection in each direction: frames of a length u32 and a protobuf message. What
// cannot be sent is dropped: Raft sends it again.

const (
	linkQueue   = 4096
	linkBuffer  = 256 << 10
	redialAfter = 20 * time.Millisecond
	dialTimeout = time.Second
	sendTimeout = 10 * time.Second
	frameMax    = 1 << 30
)

type transport struct {
	links map[uint64]*link
	// unreachable has peers that something could not be sent to.
	unreachable chan uint64
}

type link struct {
	peer        uint64
	addr        string
	queue       chan *pb.Message
	unreachable chan<- uint64
}

// newTransport sends to all peers but self until the context ends.
func newTransport(ctx context.Context, self uint64, peers map[uint64]string) *transport {
	t := &transport{links: make(map[uint64]*link), unreachable: make(chan uint64, 64)}
	for id, addr := range peers {
		if id == self {
			continue
		}
		l := &link{peer: id, addr: addr, queue: make(chan *pb.Message, linkQueue), unreachable: t.unreachable}
		t.links[id] = l
		go l.run(ctx)
	}
	return t
}

func (t *transport) send(messages []*pb.Message) {
	for _, message := range messages {
		l := t.links[message.GetTo()]
		if l == nil {
			continue
		}
		select {
		case l.queue <- message:
		default:
			l.failed()
		}
	}
}

// failed reports that the peer can't be reached, if there is room for it: the next failure says so, too.
func (l *link) failed() {
	select {
	case l.unreachable <- l.peer:
	default:
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
		case <-l.queue:
			l.failed()
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
			if err != nil {
				l.failed()
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

// receive hands on what peers send until the listener is closed.
func receive(ctx context.Context, listener net.Listener, inbound chan<- *pb.Message) {
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
