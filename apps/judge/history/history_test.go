package history

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	written := []Operation{
		{Client: 1, Op: Put, Key: "k", Value: "v", Result: Ok, Call: 1, Return: 2},
		{Client: 2, Op: Get, Key: "k", Result: Ok, Found: "quote \" and \x00 and ü", Call: 3, Return: 4},
		{Client: 3, Op: Cas, Key: "k", Value: "w", Expected: "v", Result: Unknown, Call: 5},
	}
	var file bytes.Buffer
	writer := NewWriter(&file)
	writer.Write(written)
	if err := writer.Flush(); err != nil {
		t.Fatal(err)
	}
	read, err := Read(&file)
	if err != nil || !reflect.DeepEqual(read, written) {
		t.Errorf("read %+v: %v", read, err)
	}
}

func TestLinesThatMeanNothingAreRefused(t *testing.T) {
	for _, line := range []string{
		`{"op":"delete","key":"k","result":"ok"}`,
		`{"op":"put","key":"k","result":"none"}`,
		`{"op":"get","key":"k","result":"conflict"}`,
		`{"op":"get","key":"k","result":"ok","call_ns":2,"return_ns":1}`,
		`{"op":"get","key":`,
	} {
		if _, err := Read(strings.NewReader(line + "\n")); err == nil {
			t.Errorf("taken: %s", line)
		}
	}
}
