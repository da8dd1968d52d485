package isthmus

import (
	"slices"
	"strings"
)

// Turn is one turn of a conversation.
type Turn struct{ Role, Content string }

// Model is an open model; it stays open as long as the actor lives.
type Model struct {
	Handle int32
	Info   ModelInfo
}

// OpenModel opens a model that was given to this actor under a name.
func OpenModel(name string) (*Model, error) {
	handle, err := checked(hostModelOpen(textOf(name), uint32(len(name))))
	if err != nil {
		return nil, err
	}
	return modelOf(int32(handle))
}

func modelOf(handle int32) (*Model, error) {
	info := make([]ModelInfo, 1)
	_, err := checked(hostModelInfo(handle, bytesOf(info)))
	return &Model{handle, info[0]}, err
}

// OpenModelByOption opens the model that the option model names, by default "default".
func OpenModelByOption() (*Model, error) {
	if name, given := Option("model"); given {
		return OpenModel(name)
	}
	return OpenModel("default")
}

// HasChatTemplate tells whether the model was trained on conversations.
func (m *Model) HasChatTemplate() bool { return m.Info.Flags&ModelChatTemplate != 0 }

// filled is a buffer that a call has filled; called once more if the first was too small.
func filled[T any](size int, call func(room []T) int32) ([]T, error) {
	for {
		room := make([]T, size)
		n, err := checked(call(room))
		if err != nil {
			return nil, err
		}
		if n <= size {
			return room[:n], nil
		}
		size = n
	}
}

// Tokenize turns text into token ids. flags are Tokenize…; ParseSpecial only for your own text.
func (m *Model) Tokenize(text string, flags uint32) ([]int32, error) {
	return filled(len(text)/2+16, func(room []int32) int32 {
		nbytes, n := uint32(len(text)), uint32(len(room))
		return hostTokenize(m.Handle, textOf(text), nbytes, flags, bytesOf(room), n)
	})
}

// Detokenize is the text of tokens; that of one may end inside a character.
func (m *Model) Detokenize(tokens ...int32) (string, error) {
	text, err := filled(8*len(tokens), func(room []byte) int32 {
		n, nbytes := uint32(len(tokens)), uint32(len(room))
		return hostDetokenize(m.Handle, bytesOf(tokens), n, 0, bytesOf(room), nbytes)
	})
	return string(text), err
}

// ChatTemplate is a conversation as the model was trained on it, up to the assistant's turn.
func (m *Model) ChatTemplate(turns []Turn) (string, error) {
	raw := make([]ChatMessage, len(turns))
	for i, it := range turns {
		raw[i] = ChatMessage{
			offset(it.Role), uint32(len(it.Role)), offset(it.Content), uint32(len(it.Content))}
	}
	text, err := filled(4096, func(room []byte) int32 {
		n, nbytes := uint32(len(raw)), uint32(len(room))
		flags := uint32(ChatAddGenerationPrompt)
		return hostChatTemplate(m.Handle, bytesOf(raw), n, flags, bytesOf(room), nbytes)
	})
	return string(text), err
}

func offset(text string) uint32 { return uint32(uintptr(textOf(text))) }

// ChatTokens is a conversation as tokens, up to where the assistant's turn begins. Nobody can
// forge a turn: a content that holds control tokens of the model is refused, and the log says so.
// Without a chat template the contents are one document.
func (m *Model) ChatTokens(turns []Turn) ([]int32, error) {
	if !m.HasChatTemplate() {
		var text strings.Builder
		for _, it := range turns {
			text.WriteString(it.Content)
		}
		return m.Tokenize(text.String(), TokenizeAddSpecial)
	}
	if err := m.requirePlain(turns); err != nil {
		return nil, err
	}
	text, err := m.ChatTemplate(turns)
	if err != nil {
		return nil, err
	}
	tokens, err := m.Tokenize(text, TokenizeAddSpecial|TokenizeParseSpecial)
	if len(tokens) > 1 && tokens[0] == m.Info.TokenBos && tokens[1] == tokens[0] {
		tokens = tokens[1:] // the template writes the token that AddSpecial adds
	}
	return tokens, err
}

func (m *Model) requirePlain(turns []Turn) error {
	for _, it := range turns {
		plain, err := m.Tokenize(it.Content, 0)
		if err != nil {
			return err
		}
		parsed, err := m.Tokenize(it.Content, TokenizeParseSpecial)
		if err != nil {
			return err
		}
		if !slices.Equal(plain, parsed) {
			Log(LogError, "a message holds control tokens of the model")
			return Errno(EINVAL)
		}
	}
	return nil
}

// IsEnd tells whether a token ends the generation.
func (m *Model) IsEnd(token int32) (bool, error) {
	flags, err := checked(hostTokenFlags(m.Handle, token))
	return flags&TokenEog != 0, err
}
