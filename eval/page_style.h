/* The style of our pages: colours of both themes, type, tables, figures. */
#ifndef DMS_PAGE_STYLE_H
#define DMS_PAGE_STYLE_H

/* Series 0 to 9: hues after Okabe and Ito (Color Universal Design, 2008), two added, then moved so
 * that any two keep a distance of 18 or more in CIELAB also as people see them who lack one kind of
 * cone (simulated as Machado, Oliveira and Fernandes, 2009, do), at a contrast of 3:1 or more. */
extern const char dms_page_theme[], dms_page_text_style[], dms_page_figure_style[],
    dms_page_table_style[];

#endif
