// A peer of datasync in Go, for the tests: a client and a server of msg.DataMsgService, made from datasync's own .proto.
//
//	peer send ADDRESS   reads commands from standard input, one JSON object a line, and prints what came back
//	peer serve          prints its address, then every request that it gets
//	peer serve stub     the same, and answers as cn-infra's own server does: changes never, full states with nothing
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"peer/msg"
)

// Item is a key with its content, in a command and in what is printed.
type Item struct {
	Key     string `json:"key"`
	Delete  bool   `json:"delete,omitempty"`
	Content string `json:"content,omitempty"`
	Type    string `json:"type,omitempty"`
}

// Command is what the client shall do.
type Command struct {
	Call   string `json:"call"` // changes, resync or ping
	Source string `json:"source"`
	Token  string `json:"token"`
	Seq    uint32 `json:"seq"`
	Items  []Item `json:"items"`
}

// Told is what came back, or came in.
type Told struct {
	Call    string   `json:"call,omitempty"`
	Source  string   `json:"source,omitempty"`
	Items   []Item   `json:"items,omitempty"`
	Keys    []string `json:"keys,omitempty"`
	Results []uint32 `json:"results,omitempty"`
	Seq     uint32   `json:"seq,omitempty"`
	Message string   `json:"message,omitempty"`
	Code    string   `json:"code,omitempty"`
}

var printing sync.Mutex

func tell(told Told) {
	printing.Lock()
	defer printing.Unlock()
	line, err := json.Marshal(told)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "send" {
		send(os.Args[2])
	} else if len(os.Args) == 2 && os.Args[1] == "serve" {
		serve(&server{})
	} else if len(os.Args) == 3 && os.Args[1] == "serve" && os.Args[2] == "stub" {
		serve(&stub{})
	} else {
		fmt.Fprintln(os.Stderr, "usage: peer send ADDRESS | peer serve [stub]")
		os.Exit(2)
	}
}

// The client.

func send(address string) {
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	client := msg.NewDataMsgServiceClient(connection)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var command Command
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			panic(err)
		}
		told, err := do(client, command)
		told.Code = status.Code(err).String()
		if err != nil {
			told.Message = status.Convert(err).Message()
		}
		tell(told)
	}
}

func do(client msg.DataMsgServiceClient, command Command) (Told, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if command.Source != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "datasync-source", command.Source)
	}
	if command.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+command.Token)
	}
	switch command.Call {
	case "changes":
		return changes(ctx, client, command)
	case "resync":
		return resync(ctx, client, command)
	default:
		reply, err := client.Ping(ctx, &msg.PingRequest{Message: "from Go"})
		return Told{Message: reply.GetMessage()}, err
	}
}

// changes sends everything before it reads anything: the server answers many at a time.
func changes(ctx context.Context, client msg.DataMsgServiceClient, command Command) (Told, error) {
	var told Told
	stream, err := client.DataChanges(ctx)
	if err != nil {
		return told, err
	}
	for _, item := range command.Items {
		request := &msg.DataChangeRequest{Key: item.Key, Content: []byte(item.Content), ContentType: item.Type}
		if item.Delete {
			request.OperationType = msg.PutDel_DEL
		}
		if err := stream.Send(request); err != nil {
			break // the reason comes from Recv
		}
	}
	if err := stream.CloseSend(); err != nil {
		return told, err
	}
	for {
		reply, err := stream.Recv()
		if err == io.EOF {
			return told, nil
		}
		if err != nil {
			return told, err
		}
		told.Keys = append(told.Keys, reply.Key)
		told.Results = append(told.Results, reply.Result)
	}
}

func resync(ctx context.Context, client msg.DataMsgServiceClient, command Command) (Told, error) {
	requests := &msg.DataResyncRequests{MsgId: &msg.Seq{Originator: "go", SeqCreatedSec: 1, Seq: command.Seq}}
	for _, item := range command.Items {
		request := &msg.DataResyncRequest{Key: item.Key, Content: []byte(item.Content), ContentType: item.Type}
		requests.DataResyncs = append(requests.DataResyncs, request)
	}
	replies, err := client.DataResyncs(ctx, requests)
	told := Told{Seq: replies.GetMsgId().GetSeq(), Message: replies.GetError().GetMessage()}
	for _, reply := range replies.GetDataResyncs().GetReplies() {
		told.Keys = append(told.Keys, reply.Key)
		told.Results = append(told.Results, reply.Result)
	}
	return told, err
}

// The server: agrees to everything, but refuses keys that end in "refused", and breaks the stream at those that end in
// "broken". It knows numbers only, as a peer of old does.

type server struct {
	msg.UnimplementedDataMsgServiceServer
}

func serve(service msg.DataMsgServiceServer) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	running := grpc.NewServer()
	msg.RegisterDataMsgServiceServer(running, service)
	fmt.Println(listener.Addr().String())
	go func() { // ends with whoever started it
		io.Copy(io.Discard, os.Stdin)
		running.Stop()
	}()
	if err := running.Serve(listener); err != nil {
		panic(err)
	}
}

func sourceOf(ctx context.Context) string {
	incoming, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(incoming.Get("datasync-source"), ",")
}

func result(key string) uint32 {
	if strings.HasSuffix(key, "refused") {
		return 3
	}
	return 0
}

func (*server) DataChanges(stream msg.DataMsgService_DataChangesServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		tell(Told{Call: "change", Source: sourceOf(stream.Context()), Items: []Item{{
			Key:     request.Key,
			Delete:  request.OperationType == msg.PutDel_DEL,
			Content: string(request.Content),
			Type:    request.ContentType,
		}}})
		if strings.HasSuffix(request.Key, "broken") {
			return status.Error(codes.Internal, "broken on request")
		}
		reply := &msg.DataChangeReply{Key: request.Key, OperationType: request.OperationType, Result: result(request.Key)}
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
}

func (*server) DataResyncs(ctx context.Context, requests *msg.DataResyncRequests) (*msg.DataResyncReplies, error) {
	told := Told{Call: "resync", Source: sourceOf(ctx), Seq: requests.GetMsgId().GetSeq()}
	replies := &msg.DataResyncReplies{MsgId: requests.MsgId, DataResyncs: &msg.DataResyncsReplies{}}
	for _, request := range requests.DataResyncs {
		told.Items = append(told.Items, Item{Key: request.Key, Content: string(request.Content), Type: request.ContentType})
		reply := &msg.DataResyncReply{ResyncId: requests.MsgId, Key: request.Key, Result: result(request.Key)}
		replies.DataResyncs.Replies = append(replies.DataResyncs.Replies, reply)
	}
	tell(told)
	return replies, nil
}

func (*server) Ping(context.Context, *msg.PingRequest) (*msg.PingReply, error) {
	return &msg.PingReply{Message: "it works"}, nil
}

// The server as cn-infra has it: it takes changes and never answers one, and discards full states.

type stub struct {
	server
}

func (*stub) DataChanges(stream msg.DataMsgService_DataChangesServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		tell(Told{Call: "change", Items: []Item{{Key: request.Key}}})
	}
}

func (*stub) DataResyncs(ctx context.Context, requests *msg.DataResyncRequests) (*msg.DataResyncReplies, error) {
	if requests.DataResyncs == nil {
		return nil, status.Error(codes.Unknown, "received an empty full state")
	}
	tell(Told{Call: "resync"})
	return &msg.DataResyncReplies{MsgId: &msg.Seq{}}, nil
}
