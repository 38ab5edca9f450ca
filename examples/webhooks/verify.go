// Verifies callseal's notices. Go 1.18 or later, standard library only.
//
//	notice, err := verify(secrets, request.Header, rawBody, time.Now().Unix())
//
// rawBody is the body as it came, before any JSON parser. As a program it checks the vectors of the repository:
//
//	go run examples/webhooks/verify.go tests/vectors/notices.json
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
)

const windowSecs = 300

// verify returns the notice; secrets are yours, one or two while they change.
func verify(secrets [][]byte, headers http.Header, rawBody []byte, now int64) (map[string]any, error) {
	timestamp := headers.Get("X-Callseal-Timestamp")
	at, err := strconv.ParseUint(timestamp, 10, 62)
	if err != nil {
		return nil, errors.New("no timestamp")
	}
	if apart := now - int64(at); apart > windowSecs || apart < -windowSecs {
		return nil, errors.New("too old, or from the future")
	}
	isRight := false
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(timestamp + "."))
		mac.Write(rawBody)
		expected := []byte("sha256=" + hex.EncodeToString(mac.Sum(nil)))
		for _, part := range strings.Split(headers.Get("X-Callseal-Signature"), ",") {
			// Every pair is compared, each in constant time.
			if hmac.Equal([]byte(strings.TrimSpace(part)), expected) {
				isRight = true
			}
		}
	}
	if !isRight {
		return nil, errors.New("wrong signature")
	}
	var notice map[string]any
	err = json.Unmarshal(rawBody, &notice)
	return notice, err
}

type vector struct {
	Name     string            `json:"name"`
	Secrets  []string          `json:"receiver_secrets_hex"`
	Headers  map[string]string `json:"headers"`
	Body     string            `json:"body"`
	Now      int64             `json:"now"`
	Accepted bool              `json:"accepted"`
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var file struct {
		Cases []vector `json:"cases"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, one := range file.Cases {
		var secrets [][]byte
		for _, digits := range one.Secrets {
			secret, _ := hex.DecodeString(digits)
			secrets = append(secrets, secret)
		}
		headers := http.Header{}
		for name, value := range one.Headers {
			headers.Set(name, value)
		}
		if _, err := verify(secrets, headers, []byte(one.Body), one.Now); (err == nil) != one.Accepted {
			fmt.Fprintf(os.Stderr, "%s: %v\n", one.Name, err)
			os.Exit(1)
		}
	}
	fmt.Printf("%d vectors\n", len(file.Cases))
}
