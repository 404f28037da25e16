package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"checksync/apps/judge/history"
)

// request is one operation with whole values.
type request struct {
	op       history.Op
	key      string
	value    string
	expected string
}

// answer is what the server said to it.
type answer struct {
	result history.Result
	found  string
}

// target is a protocol. An error of decode is one of the connection: nothing can be read from it any more.
type target interface {
	encode(into []byte, r *request) []byte
	decode(from *bufio.Reader, r *request) (answer, error)
}

func targetByName(name string) (target, error) {
	switch name {
	case "kv":
		return kvTarget{}, nil
	case "redis":
		return redisTarget{}, nil
	default:
		return nil, fmt.Errorf("--target is %q, not redis or kv", name)
	}
}

// kvTarget speaks the protocol of apps/kv.
type kvTarget struct{}

func (kvTarget) encode(into []byte, r *request) []byte {
	switch r.op {
	case history.Get:
		into = append(append(into, "GET "...), r.key...)
	case history.Put:
		into = append(append(into, "PUT "...), r.key...)
		into = append(append(into, ' '), r.value...)
	case history.Cas:
		into = append(append(into, "CAS "...), r.key...)
		into = append(append(into, ' '), r.expected...)
		into = append(append(into, ' '), r.value...)
	}
	return append(into, '\n')
}

func (kvTarget) decode(from *bufio.Reader, r *request) (answer, error) {
	line, err := from.ReadString('\n')
	if err != nil {
		return answer{}, err
	}
	verb, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	switch {
	case verb == "OK" && r.op != history.Get:
		return answer{result: history.Ok}, nil
	case verb == "VALUE" && r.op == history.Get:
		return answer{history.Ok, value}, nil
	case verb == "CONFLICT" && r.op == history.Cas:
		return answer{history.Conflict, value}, nil
	case verb == "NONE" && r.op != history.Put:
		return answer{result: history.None}, nil
	default:
		return answer{}, fmt.Errorf("unexpected answer to %s: %.80q", r.op, line)
	}
}

// redisTarget speaks RESP2. A compare-and-swap is a script.
type redisTarget struct{}

const swapScript = `local v = redis.call('GET', KEYS[1])
if not v then return {0} end
if v ~= ARGV[1] then return {1, v} end
redis.call('SET', KEYS[1], ARGV[2])
return {2}`

func (redisTarget) encode(into []byte, r *request) []byte {
	switch r.op {
	case history.Get:
		return appendCommand(into, "GET", r.key)
	case history.Put:
		return appendCommand(into, "SET", r.key, r.value)
	default:
		return appendCommand(into, "EVAL", swapScript, "1", r.key, r.expected, r.value)
	}
}

func appendCommand(into []byte, words ...string) []byte {
	into = strconv.AppendInt(append(into, '*'), int64(len(words)), 10)
	into = append(into, "\r\n"...)
	for _, word := range words {
		into = strconv.AppendInt(append(into, '$'), int64(len(word)), 10)
		into = append(append(into, "\r\n"...), word...)
		into = append(into, "\r\n"...)
	}
	return into
}

func (redisTarget) decode(from *bufio.Reader, r *request) (answer, error) {
	got, err := readReply(from)
	if err != nil {
		return answer{}, err
	}
	switch {
	case got.kind == '+' && r.op == history.Put:
		return answer{result: history.Ok}, nil
	case got.kind == '$' && r.op == history.Get && got.isNil:
		return answer{result: history.None}, nil
	case got.kind == '$' && r.op == history.Get:
		return answer{history.Ok, got.text}, nil
	case got.kind == '*' && r.op == history.Cas && len(got.parts) > 0:
		return swapAnswer(got.parts)
	default:
		return answer{}, fmt.Errorf("unexpected answer to %s: %c%.80s", r.op, got.kind, got.text)
	}
}

func swapAnswer(parts []reply) (answer, error) {
	switch {
	case parts[0].text == "0":
		return answer{result: history.None}, nil
	case parts[0].text == "1" && len(parts) == 2:
		return answer{history.Conflict, parts[1].text}, nil
	case parts[0].text == "2":
		return answer{result: history.Ok}, nil
	default:
		return answer{}, errors.New("the script's answer is none that it gives")
	}
}

type reply struct {
	kind  byte
	text  string
	isNil bool
	parts []reply
}

func readReply(from *bufio.Reader) (reply, error) {
	line, err := from.ReadString('\n')
	if err != nil {
		return reply{}, err
	}
	if len(line) < 3 || !strings.HasSuffix(line, "\r\n") {
		return reply{}, fmt.Errorf("%.80q is no line of RESP", line)
	}
	got := reply{kind: line[0], text: line[1 : len(line)-2]}
	switch got.kind {
	case '+', '-', ':':
		return got, nil
	case '$':
		return readBulk(from, got)
	case '*':
		return readArray(from, got)
	default:
		return reply{}, fmt.Errorf("%.80q is no line of RESP", line)
	}
}

func readBulk(from *bufio.Reader, head reply) (reply, error) {
	length, err := strconv.Atoi(head.text)
	if err != nil || length > 512<<20 {
		return reply{}, fmt.Errorf("%.80q is no length", head.text)
	}
	if length < 0 {
		head.isNil = true
		return head, nil
	}
	bulk := make([]byte, length+2)
	if _, err := io.ReadFull(from, bulk); err != nil {
		return reply{}, err
	}
	head.text = string(bulk[:length])
	return head, nil
}

func readArray(from *bufio.Reader, head reply) (reply, error) {
	count, err := strconv.Atoi(head.text)
	if err != nil || count > 16 {
		return reply{}, fmt.Errorf("%.80q is no count of parts that was asked for", head.text)
	}
	for range count {
		part, err := readReply(from)
		if err != nil {
			return reply{}, err
		}
		head.parts = append(head.parts, part)
	}
	return head, nil
}
