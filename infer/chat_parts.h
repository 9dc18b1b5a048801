/* Texts that the turn formats and their templates share. */
#ifndef DMS_CHAT_PARTS_H
#define DMS_CHAT_PARTS_H

/* What a Llama 3.1 or later template states before the date. Source: the chat_template of
 * meta-llama/Llama-3.1-8B-Instruct and Llama-3.2-3B-Instruct. */
#define DMS_CHAT_CUTTING_DATE "Cutting Knowledge Date: December 2023"

/* DeepSeek's tokens: U+FF5C for the bars, U+2581 for the gaps. */
#define DMS_CHAT_USER "<\uFF5CUser\uFF5C>"
#define DMS_CHAT_ASSISTANT "<\uFF5CAssistant\uFF5C>"
#define DMS_CHAT_BEGIN_OF_SENTENCE "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>"
#define DMS_CHAT_END_OF_SENTENCE "<\uFF5Cend\u2581of\u2581sentence\uFF5C>"

#endif
