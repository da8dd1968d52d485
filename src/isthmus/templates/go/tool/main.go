// An agent with a tool and state. Before it answers, it looks the message up with the host's tool
// lookup, if it was given that; it counts its answers, and tells their number when asked: count.
package main

import (
	"fmt"
	"strings"

	"isthmus"
)

// Notes is what the agent remembers.
type Notes struct {
	nAnswers  int
	session   *isthmus.Session
	sampler   *isthmus.Sampler
	maxTokens int
}

// start reads the options and opens the session.
func start() (*Notes, error) {
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
	return &Notes{session: session, sampler: sampler, maxTokens: maxTokens}, err
}

// question is what the model is asked: the message, after what the tool knows about it.
func question(message string) (string, error) {
	facts, err := isthmus.CallTool("lookup", message)
	if err == isthmus.Errno(isthmus.ENOENT) {
		return message, nil
	}
	return "Facts: " + facts + "\n\n" + message, err
}

// answer streams the model's answer to a message.
func (n *Notes) answer(message string) error {
	asked, err := question(message)
	if err != nil {
		return err
	}
	asked = strings.ToValidUTF8(asked, "\ufffd")
	tokens, err := n.session.Model.ChatTokens([]isthmus.Turn{{Role: "user", Content: asked}})
	if err != nil {
		return err
	}
	if err := n.session.Become(tokens); err != nil {
		return err
	}
	if _, err := n.session.Generate(n.sampler, n.maxTokens); err != nil {
		return err
	}
	n.nAnswers++
	return nil
}

var agent *Notes

//go:wasmexport on_message
func onMessage(nbytes int32) int32 {
	return isthmus.Handle(nbytes, func(message string) (err error) {
		if agent == nil {
			if agent, err = start(); err != nil {
				agent = nil
				return err
			}
		}
		if message == "count" {
			return isthmus.Emit(fmt.Sprintf("%d answers", agent.nAnswers))
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
