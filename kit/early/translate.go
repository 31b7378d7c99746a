package early

import (
	"os"
	"slices"
	"strings"

	"k8s.io/kubectl/pkg/util/i18n"
)

// languages are those that kubectl is translated into.
var languages = []string{"de_DE", "fr_FR", "it_IT", "ja_JP", "ko_KR", "pt_BR", "zh_CN", "zh_TW"}

// load has kubectl's messages translated for those alone whose language is not English.
// kubectl translates its texts while its packages are initialised, into English too,
// which changes none of them: every process spent 14 ms and 4 MB on it.
func load() error {
	lang := language(os.Getenv)
	if !slices.Contains(languages, lang) {
		return nil
	}
	return i18n.LoadTranslations("kubectl", func() string { return lang })
}

// language is the user's, as kubectl finds it in the environment.
func language(getenv func(string) string) string {
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if v := getenv(name); v != "" {
			lang, _, ok := strings.Cut(v, ".")
			if !ok {
				return ""
			}
			return lang
		}
	}
	return ""
}
