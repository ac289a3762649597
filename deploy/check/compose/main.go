// Command compose asks whether deploy/compose.yaml is what Compose takes: it is read by the loader that Compose v2
// itself uses, and each part must have what a city's part needs. `go run . ../../compose.yaml`
package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// What is looked after in another way; compose.yaml says why.
var unchecked = []string{"topics", "otel-collector", "provider"}

func main() {
	wrong, err := look(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, why := range wrong {
		fmt.Fprintln(os.Stderr, why)
	}
	if len(wrong) > 0 {
		os.Exit(1)
	}
}

func look(path string) ([]string, error) {
	options, err := cli.NewProjectOptions([]string{path},
		cli.WithProfiles([]string{"*"}), cli.WithEnv([]string{"CABRANK_SECRET=checked"}))
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	var wrong []string
	bad := func(format string, of ...any) { wrong = append(wrong, fmt.Sprintf(format, of...)) }
	for _, name := range project.ServiceNames() {
		service := project.Services[name]
		if (service.HealthCheck == nil || service.HealthCheck.Disable) && !slices.Contains(unchecked, name) {
			bad("%s: no health check", name)
		}
		for of, how := range service.DependsOn {
			other, here := project.Services[of]
			if how.Condition == types.ServiceConditionHealthy && here && other.HealthCheck == nil {
				bad("%s waits for the health of %s, which has none", name, of)
			}
		}
		for _, volume := range service.Volumes {
			if volume.Type != types.VolumeTypeBind {
				continue
			}
			if _, err := os.Stat(volume.Source); err != nil {
				bad("%s: %v", name, err)
			}
		}
		if service.Image == "cabrank" && (!service.ReadOnly || service.User == "" || len(service.CapDrop) == 0) {
			bad("%s: its root can be written, or it runs as root", name)
		}
	}
	count := func(command string) (n int) {
		for _, service := range project.Services {
			if len(service.Command) > 0 && service.Command[0] == command {
				n++
			}
		}
		return n
	}
	if gateways, matchers := count("gateway"), count("matcher"); gateways != 2 || matchers != 3 {
		bad("%d gateways and %d matchers instead of 2 and 3", gateways, matchers)
	}
	fmt.Printf("compose: %d services as Compose v2 reads them\n", len(project.Services))
	return wrong, nil
}
