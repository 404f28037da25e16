package main

import (
	"encoding/binary"
	"errors"
	"strings"
)

// An entry of the log is the proposer's id u64, then for each command its number u64, its length u32, and its
// requests, one a line, as the clients sent them.

const commandHeader = 12

func encodeCommands(proposer uint64, commands []*command) []byte {
	content := binary.LittleEndian.AppendUint64(nil, proposer)
	for _, c := range commands {
		requests := strings.Join(c.requests, "\n")
		content = binary.LittleEndian.AppendUint64(content, c.number)
		content = binary.LittleEndian.AppendUint32(content, uint32(len(requests)))
		content = append(content, requests...)
	}
	return content
}

func decodeCommands(content []byte, each func(proposer, number uint64, requests []string)) error {
	if len(content) < 8 {
		return errors.New("an entry is cut short")
	}
	proposer := binary.LittleEndian.Uint64(content)
	for content = content[8:]; len(content) > 0; {
		if len(content) < commandHeader {
			return errors.New("an entry is cut short")
		}
		number := binary.LittleEndian.Uint64(content)
		length := int(binary.LittleEndian.Uint32(content[8:]))
		content = content[commandHeader:]
		if length > len(content) {
			return errors.New("an entry is cut short")
		}
		each(proposer, number, strings.Split(string(content[:length]), "\n"))
		content = content[length:]
	}
	return nil
}
