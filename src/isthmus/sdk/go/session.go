package isthmus

import (
	"strings"
	"unsafe"
)

const alignment = 4096

// Session is one sequence of tokens. It keeps the bytes in which its KV cache and logits lie, which
// Go's collector does not move.
type Session struct {
	Model  *Model
	Handle int32
	NCtx   int
	Tokens []int32
	bytes  []byte
}

// OpenSession opens a session of nCtx tokens, in memory of its own.
func OpenSession(model *Model, nCtx int) (*Session, error) {
	nbytes, err := checked(hostSessionNbytes(model.Handle, uint32(nCtx)))
	if err != nil {
		return nil, err
	}
	room := make([]byte, nbytes+alignment)
	skipped := -uintptr(bytesOf(room)) % alignment
	bytes := room[skipped : int(skipped)+nbytes]
	handle, err := checked(
		hostSessionOpen(model.Handle, uint32(nCtx), bytesOf(bytes), uint32(nbytes)))
	if err != nil {
		return nil, err
	}
	return &Session{Model: model, Handle: int32(handle), NCtx: nCtx, bytes: room}, nil
}

// OpenSessionByOption opens a session of the option n_ctx; by default what the model knows, up to
// 2,048.
func OpenSessionByOption(model *Model) (*Session, error) {
	nCtx, err := OptionInt("n_ctx", int(min(model.Info.NCtxTrain, 2048)))
	if err != nil {
		return nil, err
	}
	return OpenSession(model, nCtx)
}

// Reopen is for on_replay: it opens the session anew, empty, which the host closed because its model
// is another one now.
func (s *Session) Reopen() error {
	model, err := modelOf(s.Model.Handle)
	if err != nil {
		return err
	}
	opened, err := OpenSession(model, min(s.NCtx, int(model.Info.NCtxTrain)))
	if err == nil {
		*s = *opened
	}
	return err
}

// Close closes the session; its memory is Go's again.
func (s *Session) Close() error {
	_, err := checked(hostSessionClose(s.Handle))
	s.bytes = nil
	return err
}

// Prefill appends tokens, many at a time. On an error the session is as it was.
func (s *Session) Prefill(tokens []int32) error {
	_, err := checked(hostPrefill(s.Handle, bytesOf(tokens), uint32(len(tokens))))
	if err == nil {
		s.Tokens = append(s.Tokens, tokens...)
	}
	return err
}

// Decode appends one token. On an error the session is as it was.
func (s *Session) Decode(token int32) error {
	_, err := checked(hostDecode(s.Handle, token))
	if err == nil {
		s.Tokens = append(s.Tokens, token)
	}
	return err
}

// Keep forgets all tokens after the first n; all of them if the model takes none back. It returns
// how many are left.
func (s *Session) Keep(n int) (int, error) {
	_, err := checked(hostTruncate(s.Handle, uint32(n)))
	if err == Errno(ENOTSUP) {
		n = 0
		_, err = checked(hostTruncate(s.Handle, 0))
	}
	if err == nil {
		s.Tokens = s.Tokens[:n]
	}
	return n, err
}

// Become makes the session hold exactly these tokens, with logits after them. It computes only
// what follows the tokens that both have in common.
func (s *Session) Become(tokens []int32) error {
	if len(tokens) > s.NCtx {
		return Errno(ECONTEXT) // before anything is lost
	}
	n := 0
	for n < len(s.Tokens) && n+1 < len(tokens) && s.Tokens[n] == tokens[n] {
		n++
	}
	n, err := s.Keep(n)
	if err != nil {
		return err
	}
	return s.Prefill(tokens[n:])
}

// Logits are those after the last token, in place: one for each token of the vocabulary.
func (s *Session) Logits() ([]float32, error) {
	address, err := checked(hostLogits(s.Handle))
	if err != nil {
		return nil, err
	}
	within := uintptr(address) - uintptr(bytesOf(s.bytes))
	first := (*float32)(unsafe.Add(bytesOf(s.bytes), within))
	return unsafe.Slice(first, s.Model.Info.NVocab), nil
}

// Sample draws the next token. It does not append it.
func (s *Session) Sample(sampler *Sampler) (int32, error) {
	token, err := checked(hostSample(s.Handle, unsafe.Pointer(sampler)))
	return int32(token), err
}

// EmitToken streams a token's text to the caller and appends the token. It returns the text; false,
// and nothing happened, if the token ends the generation.
func (s *Session) EmitToken(token int32) (string, bool, error) {
	ends := false
	text, err := filled(32, func(room []byte) int32 {
		n := hostEmitToken(s.Handle, token, bytesOf(room), uint32(len(room)))
		if ends = n == EmitEnd; ends {
			return 0
		}
		return n
	})
	if err != nil || ends {
		return "", false, err
	}
	s.Tokens = append(s.Tokens, token)
	return string(text), true, nil
}

// Generate draws, emits and appends up to maxTokens tokens, until the model ends its turn or the
// caller wants no more. It returns their text.
func (s *Session) Generate(sampler *Sampler, maxTokens int) (string, error) {
	var text strings.Builder
	for range maxTokens {
		token, err := s.Sample(sampler)
		if err != nil {
			return "", err
		}
		piece, more, err := s.EmitToken(token)
		if err == Errno(ECANCELED) {
			break
		} else if err != nil {
			return "", err
		} else if !more {
			break
		}
		text.WriteString(piece)
	}
	return text.String(), nil
}

// Grammar is a text that follows a grammar, as far as it is.
type Grammar struct{ Handle int32 }

// OpenGrammar begins a text. kind is one of GrammarKind….
func OpenGrammar(model *Model, kind uint32, source string) (*Grammar, error) {
	handle, err := checked(
		hostGrammarOpen(model.Handle, kind, textOf(source), uint32(len(source))))
	return &Grammar{int32(handle)}, err
}

// Mask masks the logits of what may not come next. It is false if the text may only end.
func (g *Grammar) Mask(session *Session) (bool, error) {
	n, err := checked(hostGrammarMask(g.Handle, session.Handle))
	return n > 0, err
}

// Accept goes on after a token, which becomes part of the text.
func (g *Grammar) Accept(token int32) error {
	_, err := checked(hostGrammarAccept(g.Handle, token))
	return err
}

// Close gives the grammar back.
func (g *Grammar) Close() error {
	_, err := checked(hostGrammarClose(g.Handle))
	return err
}
