// Package isthmus is what an agent written in Go is built on: a thin layer over the guest ABI.
//
//	isthmus.go   the message and its answer, the log, options, tools; Handle
//	model.go     models by name, tokens and texts, conversations
//	session.go   sessions, whose KV cache and logits lie in this guest's memory; grammars
//	abi.go       the ABI itself, generated
//
// An agent exports on_message with //go:wasmexport, and Handle turns an error into the errno that
// the host takes.
package isthmus

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"
)

// Errno is why a call failed, such as ECONTEXT.
type Errno int32

func (e Errno) Error() string { return fmt.Sprintf("isthmus: errno %d", int32(e)) }

func checked[T int32 | int64](result T) (int, error) {
	if result < 0 {
		return 0, Errno(-result)
	}
	return int(result), nil
}

// Handle reads the message of nbytes bytes, has it handled, and returns what on_message returns.
func Handle(nbytes int32, handle func(message string) error) int32 {
	message := make([]byte, nbytes)
	_, err := checked(hostMessageRead(bytesOf(message), uint32(nbytes)))
	if err == nil {
		err = handle(string(message))
	}
	return Status(err)
}

// Status is what on_message and on_replay return: 0, or the negated errno of an error.
func Status(err error) int32 {
	switch errno := err.(type) {
	case nil:
		return 0
	case Errno:
		return -int32(errno)
	}
	Log(LogError, err.Error())
	return -EIO
}

func bytesOf[T any](values []T) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(values)) }

func textOf(text string) unsafe.Pointer { return unsafe.Pointer(unsafe.StringData(text)) }

// Emit streams a piece of the answer. Pieces may be cut anywhere, also inside a character.
func Emit(piece string) error {
	_, err := checked(hostEmit(textOf(piece), uint32(len(piece))))
	return err
}

// Reply sets the answer, in place of all that was emitted.
func Reply(answer string) error {
	_, err := checked(hostReply(textOf(answer), uint32(len(answer))))
	return err
}

// Log writes a line to the actor's log; level is one of Log….
func Log(level uint32, line string) error {
	_, err := checked(hostLog(level, textOf(line), uint32(len(line))))
	return err
}

// CallTool calls a function of the host by name. The error is Errno(ENOENT) if this actor was not
// given it.
func CallTool(name, args string) (string, error) {
	n, err := checked(
		hostToolCall(textOf(name), uint32(len(name)), textOf(args), uint32(len(args))))
	if err != nil {
		return "", err
	}
	result := make([]byte, n)
	_, err = checked(hostToolResult(bytesOf(result), uint32(n)))
	return string(result), err
}

// Option is the value of the option key=value that the actor was spawned with; the last one counts.
func Option(key string) (value string, given bool) {
	for _, arg := range os.Args {
		if text, found := strings.CutPrefix(arg, key+"="); found {
			value, given = text, true
		}
	}
	return value, given
}

func option[T any](key string, standard T, parse func(string) (T, error)) (T, error) {
	text, given := Option(key)
	if !given {
		return standard, nil
	}
	value, err := parse(text)
	if err != nil {
		Log(LogError, fmt.Sprintf("option %s is '%s', which is not of its type", key, text))
		return standard, Errno(EINVAL)
	}
	return value, nil
}

// OptionInt is an option that is a whole number, or its default.
func OptionInt(key string, standard int) (int, error) {
	return option(key, standard, strconv.Atoi)
}

// OptionFloat is an option that is a number, or its default.
func OptionFloat(key string, standard float64) (float64, error) {
	return option(key, standard, func(text string) (float64, error) {
		return strconv.ParseFloat(text, 32)
	})
}

// SamplerByOption is the host's sampler with the options temperature, top_k, top_p, min_p,
// repeat_penalty, repeat_last_n and seed. Without a seed the actor's own chance decides.
func SamplerByOption() (*Sampler, error) {
	numbers := map[string]float64{
		"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
		"repeat_penalty": 1.1, "repeat_last_n": 64,
	}
	for key, standard := range numbers {
		value, err := OptionFloat(key, standard)
		if err != nil {
			return nil, err
		}
		numbers[key] = value
	}
	var random [1]int64
	if _, err := checked(hostRandom(bytesOf(random[:]), 8)); err != nil {
		return nil, err
	}
	seed, err := OptionInt("seed", int(random[0]))
	return &Sampler{
		Temperature:   float32(numbers["temperature"]),
		TopK:          uint32(numbers["top_k"]),
		TopP:          float32(numbers["top_p"]),
		MinP:          float32(numbers["min_p"]),
		RepeatPenalty: float32(numbers["repeat_penalty"]),
		RepeatLastN:   uint32(numbers["repeat_last_n"]),
		RngState:      uint64(seed),
	}, err
}
