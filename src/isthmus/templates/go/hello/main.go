// An agent that talks with a model. Each message is what the user says next.
package main

import (
	"strings"

	"isthmus"
)

// Hello is a conversation that stays in its session.
type Hello struct {
	turns     []isthmus.Turn
	session   *isthmus.Session
	sampler   *isthmus.Sampler
	maxTokens int
}

// start reads the options and opens the session.
func start() (*Hello, error) {
	model, err := isthmus.OpenModelByOption()
	if err != nil {
		return nil, err
	}
	sampler, err := isthmus.SamplerByOption()
	if err != nil {
		return nil, err
	}
	maxTokens, err := isthmus.OptionInt("max_tokens", 256)
	if err != nil {
		return nil, err
	}
	session, err := isthmus.OpenSessionByOption(model)
	return &Hello{session: session, sampler: sampler, maxTokens: maxTokens}, err
}

// answer streams the model's answer to a message, and adds both.
func (h *Hello) answer(message string) error {
	said := append(h.turns, isthmus.Turn{Role: "user", Content: strings.ToValidUTF8(message, "\ufffd")})
	tokens, err := h.session.Model.ChatTokens(said)
	if err != nil {
		return err
	}
	if err := h.session.Become(tokens); err != nil {
		return err
	}
	text, err := h.session.Generate(h.sampler, h.maxTokens)
	if err != nil {
		return err
	}
	answer := isthmus.Turn{Role: "assistant", Content: strings.ToValidUTF8(text, "\ufffd")}
	h.turns = append(said, answer)
	return nil
}

var agent *Hello

//go:wasmexport on_message
func onMessage(nbytes int32) int32 {
	return isthmus.Handle(nbytes, func(message string) (err error) {
		if agent == nil {
			if agent, err = start(); err != nil {
				agent = nil
				return err
			}
		}
		return agent.answer(message)
	})
}

// onReplay is called for another model: the next message reads all that was said.
//
//go:wasmexport on_replay
func onReplay() int32 {
	if agent == nil {
		return 0
	}
	return isthmus.Status(agent.session.Reopen())
}

func main() {}
